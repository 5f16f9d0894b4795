"""From a file of questions to jobs: reading, checking, and pairing with documents."""
