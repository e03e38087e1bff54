"""The proof: it must fail on every planted fault, and never on what is right."""
