"""``vidalign play``: a page on which somebody types a prompt and sees a student's chunks as they are made.

`session` is one clip of one page, without any web code; `panes` opens the students; `device` makes one chunk at a time;
`app` is the page and its websocket; `run` starts and stops the server.
"""
