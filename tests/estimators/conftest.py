from helpers.bad_inputs import files, made  # noqa: F401 - fixtures
