"""Networks that score a clip for a prompt and are trained to tell the teacher's clips from the student's."""
