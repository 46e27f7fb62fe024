"""The page of `retipair app`. Only `page` imports gradio; the other modules are the logic and the texts of the page."""
