"""How good a model is: questions with exact answers, through the real engine, in numbers."""
