"""The supervisor: the process table, the links, the routing by CONN_ID, start and end."""
