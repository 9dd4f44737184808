"""Networks that score a clip for a prompt and are trained to separate the teacher's clips from the student's."""
