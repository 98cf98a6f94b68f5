"""Labels of recordings as people annotate them: Raven, Audacity, ELAN, Praat, CSV tables, xeno-canto."""
