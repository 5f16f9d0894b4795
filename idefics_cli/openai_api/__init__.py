"""The chat completions form of the OpenAI API: its bodies read and made. No web framework, no engine."""
