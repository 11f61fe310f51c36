"""The supervisor: process table, links, routing by CONN_ID, lifecycle."""
