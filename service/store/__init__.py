"""Where state lives: rows in a database, bytes in an artifact store."""
