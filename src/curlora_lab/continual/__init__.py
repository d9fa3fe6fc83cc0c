"""The continual loop: stages, the score matrix, what is kept on disk and how it is found again."""
