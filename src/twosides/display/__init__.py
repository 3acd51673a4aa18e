"""How things are shown: bars, tables, pictures, pages."""
