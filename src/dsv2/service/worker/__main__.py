"""``python -m dsv2.service.worker``."""

from dsv2.service.worker.main import run

if __name__ == "__main__":
    run()
