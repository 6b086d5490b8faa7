"""cutpq"""
