"""The parts of `compute_to_target.py`: problems, methods, runs, and what is made of them."""
