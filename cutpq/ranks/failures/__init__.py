"""Who is late, who is gone, and how the job ends."""
