"""Text encoders of video students, and the features of their prompts."""
