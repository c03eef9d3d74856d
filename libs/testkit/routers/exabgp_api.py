"""The process that ExaBGP runs beside itself: what it hears goes line by line to a file, lines from a socket go to it.

Arguments: directory. Standard library only: it runs on whatever Python ExaBGP runs on. A line in on `api.sock` is an
ExaBGP command (doc of ExaBGP 4: "controlling ExaBGP"); the answer is `done` or `error`.
"""

import os
import socket
import sys
import threading


def hear(directory: str, answers: "list[str]", answered: threading.Condition) -> None:
    with open(os.path.join(directory, "heard.jsonl"), "a", buffering=1, encoding="utf-8") as heard:
        for line in sys.stdin:
            if line.strip() in ("done", "error"):
                with answered:
                    answers.append(line.strip())
                    answered.notify()
            else:
                heard.write(line)


def main() -> None:
    directory = sys.argv[1]
    answers: list[str] = []
    answered = threading.Condition()
    ear = threading.Thread(target=hear, args=(directory, answers, answered), daemon=True)
    ear.start()
    path = os.path.join(directory, "api.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path + ".new")
    server.listen()
    os.rename(path + ".new", path)  # whoever sees it can connect
    while True:
        channel, _ = server.accept()
        with channel, channel.makefile("rw", encoding="utf-8") as lines:
            for command in lines:
                with answered:
                    answers.clear()
                sys.stdout.write(command)
                sys.stdout.flush()
                with answered:
                    answered.wait_for(lambda: bool(answers), timeout=10)
                    lines.write((answers[0] if answers else "error") + "\n")
                lines.flush()


if __name__ == "__main__":
    main()
