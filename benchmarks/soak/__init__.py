"""A platform under steady traffic whose processes are killed and whose disk fills up."""
