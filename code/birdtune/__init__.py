"""birdtune: from a folder of bird recordings to a served classifier and an honest report."""

__version__ = "0.1.0"
