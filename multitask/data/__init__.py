"""Turn the CSVs and images of a data set into batches."""
