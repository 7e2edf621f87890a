"""What the `spotconn` command is made of."""
