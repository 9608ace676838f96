"""What a tab shows, as pure functions of runs, reports and conversations; nothing here touches a component."""
