"""What the case studies share: data, options and seeds, tables and plots, bars, and the gallery."""
