"""The oracle: checks the numbers of another implementation of K-FAC, and says which convention differs."""
