"""What a person reads of finished runs: tables, plots and pages."""
