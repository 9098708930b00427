"""What every suite needs: databases, timing, figures, reports and the command line."""
