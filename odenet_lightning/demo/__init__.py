"""The page where a digit is drawn and its way through the ODE is seen. Needs the extra `demo` (Gradio)."""
