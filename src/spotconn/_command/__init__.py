"""Parts of the command `spotconn`: output, and the checks of the doctor."""
