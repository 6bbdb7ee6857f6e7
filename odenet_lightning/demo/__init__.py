"""The browser demo: draw a digit and follow its state through the ODE. Needs the extra `demo` (Gradio)."""
