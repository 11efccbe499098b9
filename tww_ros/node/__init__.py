"""The ROS adapter: images in; notes, status and answers out. The only folder with rclpy."""
