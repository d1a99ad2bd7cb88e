"""A synthetic chest radiograph with known findings, written in the layouts of real datasets."""
