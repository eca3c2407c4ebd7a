"""What a machine would take, by a model of it: nothing in here is measured."""
