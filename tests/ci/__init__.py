"""The GitHub action, its steps run as a runner would."""
