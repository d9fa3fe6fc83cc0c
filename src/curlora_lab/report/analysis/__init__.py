"""What several finished runs say together: estimates, paired differences, fronts, matched views, and what may be concluded."""
