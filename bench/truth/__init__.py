"""What a right answer is: data whose sums are exact, and float64 formulas with their bounds. Tests share it."""
