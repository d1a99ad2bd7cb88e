"""MAViLT: one language model that reads chest radiographs, draws them and answers questions about
them.
"""

__version__ = "0.1.0"
