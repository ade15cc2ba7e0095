"""Stands between a gateway and the one that is to take over from it, and breaks off what they say to each other.

It takes the place of the program (the real one is $GATEWAY), starts that, and passes on what is said up to the word in
the file `swallow`; then the one that waits for that word is hung up on. It begins when the file `begin` is there.
"""
import os
import re
import signal
import socket
import subprocess
import sys
import time

above = socket.socket(fileno=0)
below, theirs = socket.socketpair()
sockets = os.environ["PORTCULLIS_SOCKETS"].split(":", 1)[1]
os.environ["PORTCULLIS_SOCKETS"] = f"{os.getpid()}:{sockets}"
inherited = [int(descriptor) for descriptor in re.findall(r"(\d+)=[a-z]+/", sockets)]
new = subprocess.Popen([os.environ["GATEWAY"], *sys.argv[1:]], stdin=theirs, pass_fds=inherited)
theirs.close()

word = below.recv(16)
print(f"successor {new.pid} said {word}", file=sys.stderr, flush=True)
while not os.path.exists("begin"):
    time.sleep(0.01)
swallow = open("swallow").read().strip()
if swallow == "go":
    # Its end is the end of the channel, and nothing else.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: new.terminate())
above.sendall(word)
go = above.recv(16)
if swallow == "go":
    below.close()
else:
    below.sendall(go)
    below.recv(16)
above.close()
# A signal that comes just before a wait without end is handled after it, so the waits are short.
while new.poll() is None:
    time.sleep(0.01)
sys.exit(new.returncode)
