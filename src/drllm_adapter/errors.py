"""The one exception that bad input raises."""


class DrLLMError(ValueError):
    """A mistake the user can mend; the message is one sentence: what, expected, found, what to do.

    A `ValueError`, because that is what PEFT and transformers raise for bad arguments. The command line prints the
    message alone and exits with code 2.
    """
