"""How the library speaks to Spotify: what to ask and what the answers mean, when to ask, over which connections."""
