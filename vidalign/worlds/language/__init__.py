"""The embedded worlds of language students: reasoning problems and picture questions with exact answers."""
