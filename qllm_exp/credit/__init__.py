"""Credit-assignment functions as data: tensor programs, stored functions and the states to probe them on."""
