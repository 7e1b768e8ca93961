"""Studies of the tiny model in `tests/data/trained`, which is in the repository but not in the installed package.

trained_tiny   the task, its training, and the accuracy of any file or model
task_accuracy  what each precision costs in answers
"""
