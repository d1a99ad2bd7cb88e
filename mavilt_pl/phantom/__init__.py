"""A synthetic chest radiograph whose findings are known, written in the real datasets' own layouts."""
