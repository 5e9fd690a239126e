"""The PEFT method: configuration, routers, routed layers, their cache, and the tuner that puts them into a model."""

# Importing PEFT runs the registration that the package asked for, which loads the modules of this folder in order. Done
# here, before any of them, so that whichever is imported first finds PEFT complete.
import peft  # noqa: F401
