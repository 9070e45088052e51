"""The demo data set: the artists, genres and styles of its images, and its files."""
