def write_model_card(folder, config, results): pass
