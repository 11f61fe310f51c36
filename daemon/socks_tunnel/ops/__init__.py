"""Operations: logging, sd_notify, metric definitions, supervised tasks."""
