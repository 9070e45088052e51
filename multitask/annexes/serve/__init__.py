"""The web application behind `multitask serve`."""
