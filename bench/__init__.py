"""birdtune measured beside what people use today: `./entrypoint.sh bench`; not part of the package."""
