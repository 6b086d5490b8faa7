"""What is raised and what is warned about a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint is not what it should be: the message names file, tensor, what was expected and what was found."""


class CheckpointWarning(UserWarning):
    """A checkpoint says something unusual that has one sensible reading, which was taken."""
